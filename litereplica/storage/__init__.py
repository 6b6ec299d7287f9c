"""Object stores: opaque objects by key, with one contract for all kinds of stores.

This layer knows nothing of LTX, and importing it imports no client library.

base         the contract: `Storage`, its values and its errors
open         opens the storage that a replica URL names; lists what a new kind of store touches
url          parses replica URLs
keys, ranges rules for keys, for ranges
credentials  a key pair
file         objects as files; uses file_operations
s3_direct    objects in a bucket through requests of our own; uses s3_connection, s3_requests (s3_signature, s3_listing,
             http_pool), and boto3 to delete and for uploads in parts
s3           objects in a bucket through boto3; uses s3_client, s3_errors and s3_upload
wrappers     storages around a storage: retries, metering, a prefix
"""
