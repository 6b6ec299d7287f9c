#!/bin/sh
# Makes the golden files anew with the `litestream` and `sqlite3` on PATH. Run in an empty directory.
set -eu
for size in 512 4096 65536; do
    sqlite3 $size.db "PRAGMA page_size=$size; PRAGMA auto_vacuum=FULL; PRAGMA journal_mode=WAL;
        CREATE TABLE t(id INTEGER PRIMARY KEY, body);
        INSERT INTO t SELECT value, printf('row %d', value) FROM generate_series(1, 60);"
    litestream replicate -once $size.db "file://$PWD/$size"
    sqlite3 $size.db "UPDATE t SET body = 'changed' WHERE id IN (1, 60)"
    litestream replicate -once $size.db "file://$PWD/$size"
    sqlite3 $size.db "DELETE FROM t WHERE id > 10"
    litestream replicate -once $size.db "file://$PWD/$size"
    for txid in 1 2 3; do
        litestream restore -txid "000000000000000$txid" -o restored "file://$PWD/$size"
        sha256sum <restored | cut -c 1-64
        rm restored
    done >$size/sha256
done
