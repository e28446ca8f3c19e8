class HubError(ValueError):
    """What keeps a checkpoint from the Hub; the message says what to do."""
