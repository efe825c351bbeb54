"""Jobs that wait for the model: first come, first served, and others that may go along."""

from __future__ import annotations

import threading
from collections import deque

from st3.serving.http.job import Job


class Line:
    """Between the loop that puts jobs in and the thread that takes them."""

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()
        self._closed = False
        self._changed = threading.Condition()

    def put(self, job: Job) -> bool:
        """At the end; whether there was still a place."""
        with self._changed:
            if not self._closed:
                self._jobs.append(job)
                self._changed.notify()
            return not self._closed

    def take(self, most: int) -> list[Job]:
        """Wait for the first, and take along what may be answered with it; none at the end.

        Args:
            most: jobs in all.
        """
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                self._jobs = deque(job for job in self._jobs if not job.gone)
                if self._jobs:
                    break
                if self._closed:
                    return []
            first = self._jobs.popleft()
            along = [job for job in self._jobs if job.goes_with(first)][: most - 1]
            self._jobs = deque(job for job in self._jobs if job not in along)
            return [first, *along]

    def close(self) -> list[Job]:
        """Nothing comes in any more; those that wait, and will not be taken."""
        with self._changed:
            self._closed = True
            left, self._jobs = [*self._jobs], deque()
            self._changed.notify_all()
            return left
