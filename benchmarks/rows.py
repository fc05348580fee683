"""One row of a benchmark, as its own process answers for it."""

import multiprocessing
import signal


class Row:
    """A worker process and what it has answered.

    Args:
        processes: a context of `multiprocessing`.
        target: what the process does with `args` and its end of the pipe, as `worker.measure`.
    """

    def __init__(self, processes, target, *args):
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = processes.Process(target=target, args=(*args, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.error = ""
        self.samples: list[tuple[float, float]] = []
        self.weights: float | None = None
        self.kernels = ""

    def wait(self) -> None:
        """Until it is built."""
        self.weights = self._answer()

    def run(self) -> tuple[float, float] | None:
        return self._ask("run")

    def name_kernels(self) -> None:
        """By one more run."""
        self.kernels = (self._ask("kernels") or [""])[0]

    def _ask(self, what: str):
        if self.error:
            return None
        self.pipe.send(what)
        return self._answer()

    def _answer(self):
        try:
            answer = self.pipe.recv()
        except EOFError:
            self.process.join()
            killed = self.process.exitcode == -signal.SIGKILL
            answer = "killed by the system: out of memory" if killed else "crashed, see above"
        if isinstance(answer, str):
            self.error = answer
            return None
        return answer

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
