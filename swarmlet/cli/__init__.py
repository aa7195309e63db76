"""The command line: an HTTP client of the daemon's socket, with Docker's verbs and tables.

The life of a command
    main.py      finds it in a table of names and imports its module only then; one boundary
                 turns every error into one line: exit 2 for usage, 1 for the rest
    base.py      click's Command and Group with Docker's manners; the App that holds the client
    parsing.py   what users write in flags, as JSON of the API                        (pure)
    output.py    tables, --format, -q; template.py is the subset of Go's templates      (pure)
    progress.py  when a service has converged, and the lines that tell                  (pure)
    watching.py  polls and draws, redrawn on a terminal, plain lines in a pipe

What always holds
    - Nothing is decided here: the daemon validates, and its words are shown as they are.
    - `swarmlet --help` imports click and this table, nothing else (under 150 ms).
    - Output for programs (`-q`, `--format json`, pipes) has no colour and no redrawing.
"""
