"""Pure functions of arrays that mixers are made of; nothing here knows Flax."""
