"""What an embedding is trained with: each loss in a file of its own, any loss of pytorch-metric-learning, a memory."""
