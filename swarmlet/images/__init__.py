"""Images: what containers are made of, stored by digest and shared between nodes.

The problem: a box at the edge must start its tasks with no registry in reach, must not fill its
disk, and must not believe bytes because of where they came from. So every node has a content store;
an image that is in one of them is in the cluster.

The formats are the OCI image specification 1.1 and Docker's schema 2. Nothing here knows of nodes,
services or the wire: a peer is a `BlobSource`, what must stay is a set of pinned digests.

The life of an image
--------------------

    intake.py    comes in: a root file system is imported, an archive loaded, a digest fetched
    blobs.py     each blob is summed while it is written, fsynced, and only then has its name
    records.py   the manifest is read, the host's platform chosen, the configuration checked
    catalog.py   the image gets into the catalog, with its names; index.json is written
    layers.py    the first container needs it: each layer is unpacked once, by chain id
    store.py     peers read its blobs; pins keep it; without pin and tag it is collected

A tag is resolved once, where the service is created; what travels in specs is the digest of the
manifest (or of the index, where nodes of several platforms each take their own from it). What
Docker calls the image's id is the digest of the configuration.

Invariants
----------

1. A file in blobs/ was what its name says when it got there, and is on the disk for good.
2. An image in the catalog was whole when it came. When the disk loses a blob later, the image is
   incomplete (is_complete), never wrong, and fetching it again brings just that blob.
3. A layer that is half unpacked is never used: not after a crash (rename at the end), not after a
   power cut (the marker `settled`, see layers.py).
4. Nothing is removed that a pin, a tag, or somebody's open operation needs.
5. No byte of a stranger's tar is followed outside of its layer (placing.py), and none costs more
   than its bound: documents 4 MiB, headers 1 MiB, entries, bytes, depth, and a reserve of the disk.
6. Memory does not grow with an image: about 2 MiB for each transfer or unpacking under way.

Files
-----

Pure: reference.py (names), document.py (strangers' JSON), manifest.py, config.py, changes.py
(`--change`), catalog.py, table.py (index.json), tarstream.py, compression.py.
Sync, in worker threads: files.py, blobs.py, placing.py, unpack.py, layers.py, records.py,
archive.py.
Trio: transfer.py, intake.py, store.py; registry.py and http.py, imported when a registry is needed.

Where we differ
---------------

- Layers get the attributes of directories that their tar leaves out from the layers below (Docker
  makes them root's, mode 0755), and whiteouts with nothing to hide are left out (overlayfs would
  show them).
- Device nodes in layers are left out. Docker makes them.
- A layer is usable before it is on the disk, and thrown away when power fails in between.

Left out: encrypted layers, Docker's schema 1, layers of Windows, digests other than SHA-256, lazy
pulling, signatures.
"""
