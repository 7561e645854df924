"""A campaign that is labelled while everything around it is killed, paused and cut; then its log is compared."""
