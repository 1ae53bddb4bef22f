"""The leak audit: every way in which a novel name can have reached training."""
