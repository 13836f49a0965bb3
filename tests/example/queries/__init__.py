"""Saved queries that workers answer, on Flask: two queues, priorities, and one run of a query at a time."""
