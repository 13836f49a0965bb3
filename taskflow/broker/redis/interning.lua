-- What an enqueue does for queues and jobs that are new.

return intern, is_lacking, keep_bodies
