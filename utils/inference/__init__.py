"""Questions about images, for people: how they are typed, what is shown and what is written."""
