"""What an operator watches: metrics, traces, logs."""
