"""Serve: answers machines over the openpi wire with any Policy."""

from hagane.serve.answer import Answerer
from hagane.serve.relay import RelayPolicy
from hagane.serve.run import ServerThread, serve_policy
from hagane.serve.server import PolicyServer

__all__ = ["Answerer", "PolicyServer", "RelayPolicy", "ServerThread", "serve_policy"]
