"Training: recipes, the loop, runs in a folder, weights, measures of what was learned."
