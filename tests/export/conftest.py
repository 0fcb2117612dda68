from tests.forking import forked_workers
from tests.one_thread import one_thread

__all__ = ["forked_workers", "one_thread"]
