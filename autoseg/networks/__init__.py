"""Networks and the devices that run them.

Knows plans (the sections `network` and `classes`) and torch. Must not know images, files or
training.
"""
