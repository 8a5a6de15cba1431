"""From arrays to a trained, scored and exported model. The only room that imports TensorFlow and Keras."""
