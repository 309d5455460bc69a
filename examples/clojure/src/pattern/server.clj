(ns pattern.server
  "Queue -> drainer -> observer: the pattern that Tidegate began as, on grpc-java, as whole and as right as it gets.

  Reads notices from standard input, one a line, and sends each to every client that listens."
  (:import (io.grpc Server ServerBuilder Status)
           (io.grpc.stub ServerCallStreamObserver)
           (java.util.concurrent ArrayBlockingQueue ConcurrentHashMap ExecutorService Executors RejectedExecutionException
                                 TimeUnit)
           (java.util.concurrent.atomic AtomicBoolean AtomicLong)
           (notices.v1 ListenRequest ListenResponse NoticeServiceGrpc$NoticeServiceImplBase)))

(set! *warn-on-reflection* true)

(def capacity "How many notices a client may be behind." 64)

;; Two clients are never equal, whatever their ids: a type, and not a record, which would compare by value.
(deftype Client [^String id
                 ^ArrayBlockingQueue queue
                 ^ExecutorService drainer
                 ^AtomicBoolean draining
                 ^AtomicLong dropped
                 ^ServerCallStreamObserver observer])

;; ===== Output =====

(def ^:private output (Object.))

(defn- say!
  "Writes a line in one piece. `println` writes each word and the line end by itself, and the threads of several clients
  would mix theirs."
  [line]
  (locking output
    (print (str line \newline))
    (flush)))

;; ===== Queue =====

(defn- enqueue!
  "Never waits: a full queue drops its oldest."
  [^Client client notice]
  (while (not (.offer ^ArrayBlockingQueue (.queue client) notice))
    (when (.poll ^ArrayBlockingQueue (.queue client))
      (.incrementAndGet ^AtomicLong (.dropped client)))))

;; ===== Drainer =====

(defn- sendable?
  [^Client client]
  (and (.isReady ^ServerCallStreamObserver (.observer client))
       (some? (.peek ^ArrayBlockingQueue (.queue client)))))

(defn- drain!
  "Has the drainer of the client send what the stream has room for. Called whenever there may be more to send: a notice was
  queued, or the stream became ready."
  [^Client client]
  (let [^AtomicBoolean draining (.draining client)]
    (when (.compareAndSet draining false true)
      (try
        (.execute ^ExecutorService (.drainer client)
                  (fn []
                    (while (sendable? client)
                      (when-let [notice (.poll ^ArrayBlockingQueue (.queue client))]
                        (.onNext ^ServerCallStreamObserver (.observer client) notice)))
                    (.set draining false)
                    ;; A call that came between the last look and the line above found the flag set, and left.
                    (when (sendable? client)
                      (drain! client))))
        ;; The client is leaving. Whoever publishes goes on with the next one.
        (catch RejectedExecutionException _)))))

;; ===== Registry =====

(defonce ^ConcurrentHashMap clients (ConcurrentHashMap.))

(defn- leave!
  [^Client client]
  ;; Of two arguments: a cancel that comes late leaves the new stream of the same id alone.
  (.remove ^ConcurrentHashMap clients (.id client) client)
  (.shutdownNow ^ExecutorService (.drainer client))
  (say! (format "%s left, %d dropped" (.id client) (.get ^AtomicLong (.dropped client)))))

(defn- end!
  "Ends the stream from its drainer, since no two threads may call an observer at a time."
  [^Client client ^Status status]
  (try
    (.execute ^ExecutorService (.drainer client)
              (fn []
                (.onError ^ServerCallStreamObserver (.observer client) (.asRuntimeException status))
                (leave! client)))
    (catch RejectedExecutionException _)))

(defn publish!
  "Queues a notice for every client. What a client does not take in time is lost to it, and it cannot know."
  [^String text]
  (let [notice (-> (ListenResponse/newBuilder) (.setText text) .build)]
    (doseq [client (.values ^ConcurrentHashMap clients)]
      (enqueue! client notice)
      (drain! client))))

;; ===== Observer =====

(defn- listen
  [^ListenRequest request ^ServerCallStreamObserver observer]
  (let [client (Client. (.getClientId request)
                        (ArrayBlockingQueue. capacity)
                        (Executors/newSingleThreadExecutor)
                        (AtomicBoolean.)
                        (AtomicLong.)
                        observer)]
    ;; Only before this method returns may they be set. They run in turn, after it.
    (.setOnReadyHandler observer #(drain! client))
    (.setOnCancelHandler observer #(leave! client))
    (when-let [older (.put ^ConcurrentHashMap clients (.id client) client)]
      (end! older (.withDescription Status/ABORTED "a newer stream has this id")))
    (say! (str (.id client) " listens"))))

(defn- service []
  (proxy [NoticeServiceGrpc$NoticeServiceImplBase] []
    (listen [request observer]
      (listen request observer))))

;; ===== Server =====

(defn- stop!
  [^Server server]
  (.shutdown server)
  (doseq [client (.values ^ConcurrentHashMap clients)]
    (end! client (.withDescription Status/UNAVAILABLE "the server is shutting down")))
  (when-not (.awaitTermination server 10 TimeUnit/SECONDS)
    (.shutdownNow server)))

(defn -main [& [port]]
  (let [server (-> (ServerBuilder/forPort (parse-long (or port "0")))
                   (.addService ^NoticeServiceGrpc$NoticeServiceImplBase (service))
                   .build
                   .start)]
    (say! (str "listening on 127.0.0.1:" (.getPort server)))
    (run! publish! (line-seq (java.io.BufferedReader. *in*)))
    (stop! server)))
