"""What dependencies read from the environment and from files in the home folder: each is owned, recorded or refused."""
