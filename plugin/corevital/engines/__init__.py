"""Adapters: a folder for each serving engine. None knows another's."""
