"""From a base to a merged model: start, train, save, resume, merge. The only room with DeepSpeed and peft."""
