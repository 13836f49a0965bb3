"""A registration service that welcomes its users by mail: the work is done in the background, by a worker in its lifespan."""
