"""What every room needs: errors, files, locks, worker processes, progress, arrays, figure style.

Must not know images, plans or anything else of the field; imports no other room.
"""
