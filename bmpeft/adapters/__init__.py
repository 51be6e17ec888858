"""Adapters: the artifact on disk, switching adapters on one frozen backbone, answering files of questions."""
