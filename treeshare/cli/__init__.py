"""The commands: ``treeshare sample | evaluate | report | compare | export | tree | verify | bench | doctor``.

Results go to stdout, progress to stderr. Exit status 0 when it worked, 1 when ``verify`` found a difference
or ``doctor`` something missing, 2 for a user's mistake, named in one line on stderr, 130 after Ctrl-C, 141
when stdout's reader has gone.

One module per command; a new one is written beside them and named in ``app.COMMANDS``. Importing this
package loads neither torch nor transformers: commands import what they need when they run.
"""

from treeshare.cli.app import main

__all__ = ["main"]
