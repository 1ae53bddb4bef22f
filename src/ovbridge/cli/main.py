"""`ovbridge VERB ...`: finds the verb, imports only its file, and turns the user's mistakes into one line."""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence

from ovbridge.allocator import keep_freed_memory
from ovbridge.cli.arguments import pick
from ovbridge.errors import OVBridgeError

VERBS = {
    "demo": "the whole pipeline in the built-in world, ending in report.html",
    "world": "write the built-in world to disk as COCO files",
    "prepare": "make OV-COCO splits out of the public annotations",
    "label": "pseudo boxes and CLIP embeddings into a label store",
    "train": "a recipe; the same command resumes",
    "evaluate": "a checkpoint or a results file under a named protocol",
    "ablate": "the paper's tables, several seeds, resumable",
    "detect": "find things by name in pictures",
    "export": "a detector as one ONNX file whose vocabulary is an input",
    "convert": "an official checkpoint (.pth) to safetensors, safely",
    "search": "regions of a label store by text",
    "serve": "the detector over HTTP, with a web page",
    "doctor": "check a data set, a store, a checkpoint or the machine",
}

EXAMPLES = """\
examples:
  ovbridge demo --out runs/demo
  ovbridge detect photo.jpg --names "red mug,scissors" --checkpoint runs/demo/detector.safetensors --out found
  ovbridge train --help

'ovbridge VERB --help' says more of one verb; 'ovbridge --version' prints the version."""

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


def main() -> None:
    """Entry point of the `ovbridge` program."""
    keep_freed_memory()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal without Unicode shows a class name as its code points, as standard error does.
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))


DISK_REFUSALS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})
"""What a full or read-only disk answers; whoever can say more of it does so before."""


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code.

    0 on success, 2 for a mistake of the user (one line on standard error), 130 after Ctrl-C. Anything else
    that goes wrong is a fault of the program, and its traceback is left to be seen; but for a disk that refuses.
    """
    try:
        if list(argv[:1]) in (["--version"], ["-V"]):
            from ovbridge import __version__

            print(f"ovbridge {__version__}")
            return 0
        verb = pick(argv, "ovbridge", VERBS, epilog=EXAMPLES)
        importlib.import_module(f"ovbridge.cli.{verb}").run(list(argv[1:]))
        if sys.stdout is not None:  # closed by whoever started the program (`>&-`): nothing to flush
            sys.stdout.flush()
    except OVBridgeError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt as stop:
        print(f"interrupted: {str(stop) or 'the same command goes on from here'}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) left; point stdout elsewhere so that the flush at exit does not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except OSError as error:
        if error.errno not in DISK_REFUSALS:
            raise
        where = f" {error.filename}" if error.filename else ""
        print(f"error: cannot write{where} ({error.strerror}): free or unlock the disk, then repeat", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


if __name__ == "__main__":
    main()
