"""swarmlet audit: try the known ways out of a container, and over its limits.

Two looks at one container. From inside (probes.py): a process with exactly the confinement of the
container's own (the steps of an exec, or of a birth) that calls what an attacker would call, up to
the point where the kernel lets it or not; nothing is changed where it is let. From outside
(outside.py): what the host's /proc and the groups show of it.

Without a container one is made as a service's task is by default, with limits, and removed: so
the audit is also a test (tests/runtime/test_audit.py: all held). `--privileged` shows what that
opens.

The process inside is no program of the image's: it is a clone of this interpreter that has gone
through the container's steps, and ends instead of execve. So any image can be audited.
"""
