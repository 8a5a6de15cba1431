"""From arrays to a trained, scored and exported model. The only room that imports TensorFlow and Keras, and that late.

workload.py        what an attempt and the thing that is trained say to each other
keras_workload.py  the Keras model: data, devices, evaluation, export
examples.py        the data of a run, held to the memory of the pod
loop.py            epochs, metrics, progress, checkpoints, stop
history.py         what each epoch came to; which is the best, and when training ends early
steps.py           many optimizer updates in one graph call
pipeline.py        tf.data: reshape, cast, /255, one-hot; order from (seed, epoch, step)
model.py           the reference model, or your own model
own_model.py       what is checked about your own model before step 1, and what tells it from others
recipe.py          optimizer, schedule, loss, class weights, metrics
own_recipe.py      what a compiled model of your own says about them, and what is refused
workers.py         the other workers: who they are, the wait for them, what they tell each other
agreement.py       what they must agree on, before step 1 and before the commit
chatter.py         imports TensorFlow without the two lines that it always says
devices.py         threads, devices, tf.distribute strategy
evaluation.py      loss, accuracy, per class, confusion
export.py          SavedModel, weights digest
pictures.py        small pictures of the mistakes, for the report
graphs.py          what a SavedModel may hold: looked through before it is loaded
operations.py      the operations that it may have
foreign.py         another run's SavedModel, evaluated in a process of its own
tensorboard.py     event files of the epochs, for TensorBoard
watchdog.py        ends a training that hangs, with the stacks of all threads
"""
