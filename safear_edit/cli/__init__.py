"""One file per group of verbs: parse, call one function, print, exit code."""
