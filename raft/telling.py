"""A line in the log for each transition that an operator could ask about."""

from __future__ import annotations

import logging

from raft import trace as t
from raft.messages import Configuration, ServerId


def describe(configuration: Configuration) -> str:
    text = "voters=" + ",".join(map(str, configuration.voters))
    if configuration.outgoing:
        text += " outgoing=" + ",".join(map(str, configuration.outgoing))
    if configuration.learners:
        text += " learners=" + ",".join(map(str, configuration.learners))
    return text


def tell(logger: logging.Logger, server: ServerId, event: t.Trace) -> None:
    """Log *event* of *server*, if it is one that people want to know of."""
    match event:
        case t.BecameLeader(term):
            logger.info("became leader server=%d term=%d", server, term)
        case t.ElectionStarted(term):
            logger.info("election started server=%d term=%d", server, term)
        case t.QuorumLost():
            logger.warning("majority lost, stepped down server=%d", server)
        case t.RivalIgnored(term, sender):
            logger.error("two leaders in a term server=%d rival=%d term=%d", server, sender, term)
        case t.LeaderForgotten(leader, term):
            logger.info("leader forgotten server=%d leader=%d term=%d", server, leader, term)
        case t.ConfigurationSwitched(configuration):
            logger.info("configuration switched server=%d %s", server, describe(configuration))
        case t.ChangeInvalid(index, refusal):
            logger.warning("change ignored index=%d reason=%s", index, refusal.value)
        case t.ChangeIgnored(_, configuration, reason):
            logger.info("change refused %s reason=%s", describe(configuration), reason.value)
        case t.UncommittedFull():
            logger.warning("proposal dropped server=%d reason=no majority keeps up", server)
        case t.SnapshotSent(index=index, progress=progress):
            logger.info("snapshot needed follower=%d index=%d", progress.server, index)
        case t.SnapshotReported(delivered, progress):
            verb = "delivered" if delivered else "not delivered"
            logger.info("snapshot %s follower=%d", verb, progress.server)
        case t.SnapshotTimedOut(progress):
            logger.warning("snapshot taken for lost follower=%d", progress.server)
        case t.SnapshotRestored(index=index, term=term):
            logger.info("log replaced by snapshot server=%d index=%d term=%d", server, index, term)
        case t.LossNoticed(acknowledged, last):
            logger.error(
                "disk has lost acknowledged entries server=%d from=%d to=%d; no votes until a "
                "leader has made it whole",
                server,
                last + 1,
                acknowledged,
            )
        case t.Recovered(index):
            logger.info("disk made whole server=%d index=%d", server, index)
        case t.SnapshotWithoutUs(configuration):
            logger.warning("snapshot refused, not a member server=%d %s", server, configuration)
        case t.TransferStarted(term, transferee):
            logger.info("transfer started server=%d term=%d to=%d", server, term, transferee)
        case t.TimeoutNowReceived(term, leader):
            logger.info("leadership offered server=%d term=%d by=%d", server, term, leader)
        case _:
            logger.debug("server=%d %r", server, event)
