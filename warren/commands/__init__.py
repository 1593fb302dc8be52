"""What each command does: one module per command, with `async def run(options, settings)`."""
