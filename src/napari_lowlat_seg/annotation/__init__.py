"""The annotation loop without a window: objects, planes, history, propagation runs."""
