"""The write side: one database on this machine, published to a replica as it commits.

service     the loop: what is new, publish it, checkpoint now and then; and its owner's API
attach      where publishing goes on after a stop: the position that the store and the WAL agree on
resume      what the newest file of a replica says of the WAL
page_sums   8 bytes for each page of the replica, kept beside the database
known_pages the same, made from the replica when they are lost
publisher   LTX files from WAL frames and database pages, put under the next TXID
checkpoint  the barrier under which the WAL is moved into the database
wal_tail    the WAL's committed frames, read incrementally
source      the database: connections, the held read, the barrier
state       the directory beside the database: lock, spooled files, sums, the mark of the last checkpoint
store_watch tells when the store does not answer
coexist     refuses a database that Litestream is replicating
prepare     before replication: what is missing is restored
control     the socket on which a writer tells what it is and does
behind      how the log tells that the store is behind
crash       named places at which tests kill the process
"""
