"""Checkpoints that are not lost: a commit log on a store, saves that cost a copy, restores that check every byte."""
