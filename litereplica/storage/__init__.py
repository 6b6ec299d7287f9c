"""Object stores: opaque objects by key, with one contract for all kinds of stores.

This layer knows nothing of LTX, and importing it imports no client library.

base         the contract: `Storage`, its values and its errors
open         opens the storage that a replica URL names; lists what a new kind of store touches
url          parses replica URLs
keys, ranges rules for keys, for ranges
credentials  a key pair
file         objects as files; uses file_operations
s3           objects in a bucket through boto3; uses s3_client, s3_errors and s3_upload
s3_obstore   objects in a bucket through obstore; uses s3_connection, and boto3 for what obstore lacks
wrappers     storages around a storage: retries, metering, a prefix
"""
