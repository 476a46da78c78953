"""The search: policies that choose matings, proposals of hyperparameters. It knows no Ray and no weights."""
