"""The default agent: ask the model, run the tools it calls, until it calls none."""

from workers.agent.context import AgentTask, Context


async def tool_loop(ctx: Context, task: AgentTask) -> None:
    """One conversation; the tool calls of a step run at once, their outputs in its order."""
    while True:
        reply = await ctx.model()
        if reply.truncated or not reply.tool_calls:
            return
        outputs = await ctx.run_tools(reply)
        ctx.conversation.extend(output.item for output in outputs)


async def single_turn(ctx: Context, task: AgentTask) -> None:
    """One answer, no tools."""
    await ctx.model(tools=[])
