"""The tasks, and how a record becomes an example of one."""
