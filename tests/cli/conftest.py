from tests.forking import forked_workers

__all__ = ["forked_workers"]
