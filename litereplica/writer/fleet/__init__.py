"""Many databases in one process: supervisor, directories, parking, control socket."""
