"""What tests and benchmarks use, of this project and of others; the product never imports it.

memory       a store in a dictionary
faults       a store that fails as planned
latency      a store that is far away
back_doors   the objects of a store, reached without its `Storage`
conformance  the contract of `storage.base.Storage` as a class of tests; needs pytest
ltx_files    whole LTX files in memory
processes    modules that run in processes of their own
mounts       replicas mounted by the real command
litestream   the real Litestream
seaweed      SeaweedFS, a real S3 store
"""
