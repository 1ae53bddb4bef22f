"""`python -m ovbridge` is the `ovbridge` program."""

from __future__ import annotations

from ovbridge.cli.main import main

if __name__ == "__main__":
    main()
