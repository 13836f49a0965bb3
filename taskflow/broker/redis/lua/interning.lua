-- What an enqueue does for queues and jobs that are new.

return intern
