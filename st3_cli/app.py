"""`st3`: the entry point. It takes care of Ctrl-C and of the standard streams before anything else
is imported, since that takes a while.
"""

from __future__ import annotations

import sys

from st3_cli.ctrl_c import ctrl_c, leave


def main() -> None:
    """Console script: parse, run, and turn errors into one line."""
    ctrl_c.watch()
    try:
        from st3_cli.streams import mend_streams

        mend_streams()

        from st3_cli.commands import command_line
        from st3_cli.errors import guard

        code = guard(command_line)
        ctrl_c.ending = True
    except KeyboardInterrupt:
        leave()
    sys.exit(code)


if __name__ == "__main__":
    main()
