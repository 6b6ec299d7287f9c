"""The write side: publishes local databases to their replicas as transactions are committed.

replicator      the loop of one database: publish new frames, checkpoint when due
attachment      the hold on one database, and what must be published when it is taken
parker          decides whether an idle database can be closed
maintenance     compacts and prunes one replica while its database is replicated
database/       the local side: SQLite connections, the WAL, checkpoints, the state directory
publish/        the remote side: LTX files from WAL frames and pages, page checksums, the lease
resume/         where to continue after a restart
fleet/          many databases in one process: supervisor, directories, parking, control socket
settings        which databases are replicated where, and how
statistics      counters of one database
backoff         polling interval and retry delays
"""
