"""Scheduling and the step loop. Reading order: llm, plan, engine, scheduler, token_step."""
