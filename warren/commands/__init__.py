"""One file per command: `async def run(options, settings) -> int`."""
