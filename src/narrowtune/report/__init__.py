"""From a run folder to pages, plots and a summary for people.

Owns: report.html, report.md, report.json and plots/ of a run folder; the comparison of several
    runs; the summary on the terminal.
May touch: core, and the files that earlier stages left in the run folder (read only).
Never: a tensor, an ML library, the network, or a number that an earlier stage did not record.
"""
