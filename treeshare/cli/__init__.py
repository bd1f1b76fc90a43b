"""The command line, ``treeshare COMMAND``; ``app.COMMANDS`` lists the commands.

Results go to stdout, progress goes to stderr. Exit status: 0 for success, 1 if ``verify`` found a difference
or did not see the fault that it puts in, or if ``doctor`` found something missing, 2 for a user's mistake
(with a line on stderr), 130 after Ctrl-C, 141 if the reader of stdout has closed it.

There is a module per command; add a new command as a module here and to ``app.COMMANDS``. Importing this
package loads neither torch nor transformers: commands import what they need when they run.
"""

from treeshare.cli.app import main

__all__ = ["main"]
