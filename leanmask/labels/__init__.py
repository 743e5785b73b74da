"""Small pure functions that turn predictions and partial labels into training targets."""
