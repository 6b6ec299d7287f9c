"""Opaque objects by key behind one contract. This layer knows nothing of LTX, and importing it imports no client.

base         the contract: `Storage`, its values and its errors
open         the storage that a replica URL names; lists what a new kind of store touches
url          replica URLs
keys         what a key and a range must be
credentials  a key pair
file         objects as files, over file_operations
s3           objects in a bucket through boto3, over s3_client, s3_errors and s3_upload
s3_obstore   objects in a bucket through obstore, over s3_connection; boto3 for what obstore lacks
wrappers     storages around a storage: retries, metering, a prefix
"""
