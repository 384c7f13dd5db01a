"""horovodrun, without asking in processes of their own what Horovod was built with.

The two questions import TensorFlow twice, 10 s and more for each job. All else is horovodrun's.
"""

from horovod.runner import launch


def main():
    launch.mpi_built = lambda verbose=False: False
    launch.gloo_built = lambda verbose=False: True
    launch.run_commandline()


if __name__ == "__main__":
    main()
